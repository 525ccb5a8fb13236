document.getElementById("enter").submit();
